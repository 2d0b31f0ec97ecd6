//! Identities as they change: certificates that are replaced, and what is revoked.

mod revocation;
mod rollover;
mod rotation;
