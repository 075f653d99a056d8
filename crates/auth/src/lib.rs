//! Identity: certificates, tokens and who they stand for.
