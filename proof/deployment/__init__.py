"""The files of deploy/, each before its own tool, and the chart's pods as processes."""
