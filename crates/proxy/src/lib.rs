//! Service virtual addresses on one node.
