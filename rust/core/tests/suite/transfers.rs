//! Prompts computed by one core and decoded by another.

use crate::driver::limits;
use crate::pair::{D, P, Pair};

#[test]
fn a_prompt_is_computed_by_one_core_and_decoded_by_another() {
    for prompt in [1, 64, 127, 128, 191, 255, 256, 257, 600, 1024] {
        let mut pair = Pair::roomy(&limits());
        let [p, d] = pair.submit(5, prompt, 4);
        pair.run();
        assert_eq!(pair.tokens(D, d), [7, 7, 7, 7], "{prompt} tokens");
        assert_eq!(pair.ends(D, d), [2]);
        assert_eq!((pair.tokens(P, p), pair.ends(P, p)), (vec![7], vec![2]));
        assert_eq!(pair.num_resets, 2, "a slot and an aux row");
        pair.assert_at_rest();
    }
}
