//! The rewrite of a packet from one view (site or wire) to the other, checksums mended, quoted headers too.
