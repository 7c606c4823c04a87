"""Needle: a distributed, strongly consistent vector database in pure Python."""
