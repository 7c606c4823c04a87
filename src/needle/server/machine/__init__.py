"""What the operating system has for a node, and how much of it is left: memory, files, disk, time of the event loop."""
