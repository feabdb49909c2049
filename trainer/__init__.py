"""The transformer: sizes, packed token loader, training on Ray Train, prompting."""
