//! The command line of Vellum.

fn main() {}
