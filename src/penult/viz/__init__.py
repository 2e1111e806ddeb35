"""Pictures and pages: plots, the map page, reports."""
