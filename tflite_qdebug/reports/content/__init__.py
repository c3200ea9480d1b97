"""What the HTML report shows, as plain data: the texts, figures, tables and charts of each of its sections."""
