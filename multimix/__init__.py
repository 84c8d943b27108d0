"""MultiMix: the method, the data, the contract that server and sites speak. No Flower, no gRPC."""
