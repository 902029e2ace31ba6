//! Tests of the built program and of the library over real sockets.

mod store;
