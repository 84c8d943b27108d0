"""A hostile app: its ServerApp has the coordinator's key, its ClientApp runs in the hospital's connector."""
