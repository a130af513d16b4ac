"""Results as text, tables, JSON, CSV and Markdown: one neutral page, one renderer a file."""
