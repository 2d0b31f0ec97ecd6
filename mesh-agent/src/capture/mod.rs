//! The user side of the eBPF programs: load, pin, attach, fill maps, read events.
