"""What a comparison says: tables, the report, TensorBoard."""
