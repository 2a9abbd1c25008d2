"""What a comparison says: its tables, its words, its files, and TensorBoard's."""
