//! The ironclad command: the whole cluster in one process, and its client.
