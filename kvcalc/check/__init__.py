"""Did it get worse? Result documents, the evidence in their samples, a verdict a row. Pure: standard library only."""
