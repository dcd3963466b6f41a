//! Records of keys.
