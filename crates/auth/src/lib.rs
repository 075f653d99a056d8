//! Identity: who a certificate or token stands for, and how the cluster makes them.
//!
//! [`pki`] is the cluster's own authority and the certificates it issues; [`token`] signs and checks
//! service-account tokens and reads static token files; [`request`] reads and signs requests for certificates; [`identity`] is the user that comes out of
//! either; [`cluster`] keeps all of it in one directory; [`bootstrap`] signs with the tokens by which machines join. Nothing here decides what a user may do.

pub mod bootstrap;
pub mod cluster;
pub mod identity;
pub mod pki;
pub mod request;
pub mod token;

pub use identity::User;
