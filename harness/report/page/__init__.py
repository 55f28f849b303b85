"""The page of a report: report.html, one file with its records' figures, plots and details."""
