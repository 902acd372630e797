"""From similarity matrix to answer: recall, rerank, tables and figures. Knows only arrays, not the model."""
