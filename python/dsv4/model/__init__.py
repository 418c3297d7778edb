"""The network, in the order data flows, over paged caches; and the checkpoint it is read from."""
