//! What voids a wish to delete a copy.

use super::{bytes, chunk, name, open};
use crate::store::StoreError;
use common::testing::SimDisk;

#[tokio::test]
async fn a_copy_goes_only_with_a_wish_that_nothing_has_voided_since() {
    let disk = SimDisk::new(1);
    let mut store = open(&disk, 1).await.unwrap();
    let bytes = bytes(1, 1000);
    let id = name(&bytes).id;
    let stays = Err(StoreError::Busy { chunk: id });
    assert!(!store.wish(id, 1), "there is no copy");
    store.put(chunk(&bytes)).await.unwrap();
    assert_eq!(store.delete(id, 1).await, stays, "there was no wish");
    for (nonce, void) in (2..).zip(["put", "touch", "scrub", "another wish", "unwish", "another epoch", "restart"]) {
        assert!(store.wish(id, nonce));
        match void {
            "put" => store.put(chunk(&bytes)).await.unwrap(),
            "touch" => assert_eq!(store.touch(&[name(&bytes)]).await, Ok(vec![true])),
            "scrub" => store.verify(id).await.unwrap(),
            "another wish" => assert!(store.wish(id, nonce + 100)),
            "unwish" => store.unwish(id, nonce),
            "another epoch" => store.void_wishes(),
            _ => {
                drop(store);
                store = open(&disk, 2).await.unwrap();
            }
        }
        assert_eq!(store.delete(id, nonce).await, stays, "{void}");
    }
    assert!(store.wish(id, 50));
    assert_eq!(store.delete(id, 51).await, stays, "a grant of another ask");
    assert_eq!(store.delete(id, 50).await, Ok(1000));
    assert_eq!(store.delete(id, 50).await, Err(StoreError::NotFound { chunk: id }));
}
