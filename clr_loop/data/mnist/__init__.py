"""The MNIST files, as package data; see LICENSE.md beside this file."""
