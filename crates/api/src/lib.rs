//! What a Kubernetes object is: kinds, schemas, codecs, patches, selectors; pure code.
