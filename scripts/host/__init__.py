"""What `bench_host.py` is made of: the pretended device, the server over it, its clients, and the cost of planning."""
