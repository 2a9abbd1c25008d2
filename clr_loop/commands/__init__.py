"""What the commands share: flags, the terminal, the output."""
