//! promptyard
fn main() {}
