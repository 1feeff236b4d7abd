//! An input taken apart: some knobs in front, the rest as a stream that arrives in pieces.

/// The first `N` bytes, as knobs (0 where there are none), and the rest.
pub(crate) fn knobs<const N: usize>(data: &[u8]) -> ([u8; N], &[u8]) {
    match data.split_first_chunk() {
        Some((knobs, rest)) => (*knobs, rest),
        None => ([0; N], &[]),
    }
}

/// The stream in pieces whose sizes follow from the knob: 0 is one piece, 1 is bytes, others are mixed.
pub(crate) fn pieces(stream: &[u8], knob: u8) -> Vec<&[u8]> {
    let mut rest = stream;
    let mut state = u32::from(knob);
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let size = match knob {
            0 => rest.len(),
            1 => 1,
            _ => {
                state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345);
                (state >> 16) as usize % usize::from(knob) + 1
            }
        };
        let (piece, after) = rest.split_at(size.min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces
}
