//! All controllers, leader elected.
