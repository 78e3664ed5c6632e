"""The report of a scored data set: one self-contained HTML page (`report.render`)."""
