//! Small streams with the answers that they have to give, written down by hand: each is run straight through, again with a
//! kill after every step, and through batch.

mod late;
