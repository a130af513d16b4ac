"""Results as text, tables, JSON, CSV, Markdown, JUnit XML, GitHub, HTML, SVG and PNG: one renderer a file."""
