"""What experiments share: options, cells that resume, tables with spread, plots, reports."""
