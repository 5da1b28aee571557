//! The reference, held to values computed by hand and to what products must obey whatever they are computed with.
