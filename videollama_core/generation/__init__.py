"""The language model: one scheduler over a small runner interface. May import every room of the core."""
