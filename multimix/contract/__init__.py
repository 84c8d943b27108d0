"""What server and sites say to each other. Imports no torch: the process on the network starts fast."""
