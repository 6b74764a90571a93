"""The report's plots: inline SVG from results, without a plotting library."""
