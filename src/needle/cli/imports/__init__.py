"""What `needle import` reads: files and other databases, each as batches of the records that `needle insert` knows."""
