//! What the ports cannot show: the file, the sweep, the queues.
