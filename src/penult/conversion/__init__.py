"""Embedders for programs that know nothing of Penult: a module and a `ConversionFormat` each."""
