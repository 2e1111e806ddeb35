"""What vectors are good for: clusters, maps, probes, searches. Numpy in; knows no models."""
