//! Tests of the namespace as a whole.
