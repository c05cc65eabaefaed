"""kvwire-top: links, lanes, transfers, rates and queues of running nodes, live."""
