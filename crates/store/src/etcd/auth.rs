//! The Auth service, and who a caller is.

use std::sync::atomic::Ordering;

use tonic::{Request, Response, Status};
use wire::authpb::Permission;
use wire::authpb::permission::Type;
use wire::etcdserverpb::auth_server::Auth;
#[allow(clippy::wildcard_imports)] // 17 requests and their responses
use wire::etcdserverpb::*;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::Services;
use super::errors::wrong_reply;
use crate::auth::{AuthError, By, Caller, Change, ROOT, Session, What};
use crate::mvcc::{Op, Reply};
use crate::password;
use crate::replica::Refusal;

/// Letters of a token's secret part: twenty have over 110 bits.
const SECRET_LETTERS: usize = 20;
const LETTERS: &[u8; 52] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// How often a password is checked again because users changed meanwhile.
const TRIES_MAX: usize = 8;

/// What a call says of its caller.
#[derive(Debug, Clone, Default)]
pub(super) struct Credentials {
    token: Option<String>,
    certificate_user: Option<String>,
}

impl Credentials {
    pub(super) fn of<T>(request: &Request<T>) -> Self {
        let metadata = request.metadata();
        let token = metadata.get("token").or_else(|| metadata.get("authorization"));
        let certificates = request.extensions().get::<daemon::tls::PeerCertificates>();
        let certificate_user = certificates.and_then(|c| c.0.first()).and_then(|leaf| {
            let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
            let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
            Some(name.to_owned())
        });
        Self { token: token.and_then(|t| t.to_str().ok()).map(str::to_owned), certificate_user }
    }
}

impl Services {
    /// Who calls.
    pub(super) fn by<'s, T>(
        &'s self,
        request: &Request<T>,
    ) -> impl Future<Output = Result<By, Status>> + Send + use<'s, T> {
        let enabled = self.engine.auth_enabled.load(Ordering::Acquire);
        // What a member passes on comes from a client that it has identified.
        let passed_on = self.pass_on.is_none();
        let credentials = (enabled && !passed_on).then(|| Credentials::of(request));
        async move {
            match credentials {
                None if passed_on => Ok(By::Store),
                None => Ok(By::nobody()),
                Some(credentials) => Ok(self.identify(&credentials).await?),
            }
        }
    }

    /// Who has these credentials: a token counts more than a certificate.
    pub(super) async fn identify(&self, credentials: &Credentials) -> Result<By, Refusal> {
        let engine = &self.engine;
        let user = match &credentials.token {
            Some(token) => Some(self.user_of(token).await?),
            None => credentials.certificate_user.clone(),
        };
        let revision = engine.applied.read().auth.revision();
        Ok(user.map_or_else(By::nobody, |user| By::Client(Caller { user, revision })))
    }

    async fn user_of(&self, token: &str) -> Result<String, Refusal> {
        let engine = &self.engine;
        let find = || engine.tokens.lock().user(token, engine.clock.monotonic());
        let index = token.rsplit_once('.').and_then(|(_, index)| index.parse::<u64>().ok());
        let index = index.ok_or(AuthError::InvalidToken)?;
        if index > engine.applied.read().mark.index {
            // Another member gave it out; this one has yet to see it.
            engine.turn().await?;
        }
        Ok(find().ok_or(AuthError::InvalidToken)?)
    }

    /// Refuses callers that are not users.
    pub(super) async fn known<T>(&self, request: Request<T>) -> Result<T, Status> {
        let by = self.by(&request).await?;
        self.engine.applied.read().auth.known(&by).map_err(Refusal::Auth)?;
        Ok(request.into_inner())
    }

    /// Refuses callers that may not do everything.
    pub(super) async fn admin<T>(&self, request: Request<T>) -> Result<T, Status> {
        let by = self.by(&request).await?;
        self.engine.applied.read().auth.admin(&by).map_err(Refusal::Auth)?;
        Ok(request.into_inner())
    }

    async fn change_auth<T>(
        &self,
        request: Request<T>,
        what: impl FnOnce(T) -> What,
    ) -> Result<Option<ResponseHeader>, Status> {
        let by = self.by(&request).await?;
        self.change_by(&by, what(request.into_inner())).await
    }

    async fn change_by(&self, by: &By, what: What) -> Result<Option<ResponseHeader>, Status> {
        match self.engine.propose(by, &Op::Auth(Change { what: Some(what) })).await? {
            Reply::Auth => Ok(Some(self.engine.header_now())),
            _ => Err(wrong_reply()),
        }
    }

    /// Reads the newest users and roles once the caller was found to be allowed to.
    async fn look<T, R>(
        &self,
        request: Request<T>,
        read: impl FnOnce(&crate::auth::Auth, &By, T) -> Result<R, AuthError>,
    ) -> Result<(Option<ResponseHeader>, R), Status> {
        let by = self.by(&request).await?;
        self.engine.turn().await?;
        let applied = self.engine.applied.read();
        let found = read(&applied.auth, &by, request.into_inner()).map_err(Refusal::Auth)?;
        Ok((Some(self.engine.header(applied.mvcc.revision())), found))
    }

    async fn hashed(&self, password: String) -> Result<String, Status> {
        let salt = rand::random();
        let hashed = self.ctx.tasks.blocking(move || password::hash(&password, salt)).await;
        hashed.map_err(|error| Status::internal(error.to_string()))
    }

    async fn authenticate_once(&self, user: &str, password: &str) -> Result<String, Refusal> {
        let (kept, revision) = {
            let auth = &self.engine.applied.read().auth;
            if !auth.enabled {
                return Err(AuthError::NotEnabled.into());
            }
            let known = auth.users.get(user).ok_or(AuthError::Failed)?;
            if known.no_password {
                return Err(AuthError::NoPasswordUser.into());
            }
            (known.password.clone(), auth.revision())
        };
        let password = password.to_owned();
        let matches = self.ctx.tasks.blocking(move || password::matches(&password, &kept)).await;
        if !matches.unwrap_or(false) {
            return Err(AuthError::Failed.into());
        }
        let secret = (0..SECRET_LETTERS).map(|_| {
            let letter = usize::from(rand::random_range(0..52u8));
            char::from(LETTERS[letter])
        });
        let session = Session { user: user.to_owned(), secret: secret.collect(), revision };
        let change = Change { what: Some(What::Begin(session)) };
        match self.engine.propose(&By::nobody(), &Op::Auth(change)).await? {
            Reply::Token(token) => Ok(token),
            _ => Err(Refusal::Auth(AuthError::Failed)),
        }
    }
}

#[tonic::async_trait]
impl Auth for Services {
    async fn auth_enable(
        &self,
        request: Request<AuthEnableRequest>,
    ) -> Result<Response<AuthEnableResponse>, Status> {
        let header = self.change_auth(request, What::Enable).await?;
        Ok(Response::new(AuthEnableResponse { header }))
    }

    async fn auth_disable(
        &self,
        request: Request<AuthDisableRequest>,
    ) -> Result<Response<AuthDisableResponse>, Status> {
        let header = self.change_auth(request, What::Disable).await?;
        Ok(Response::new(AuthDisableResponse { header }))
    }

    async fn user_delete(
        &self,
        request: Request<AuthUserDeleteRequest>,
    ) -> Result<Response<AuthUserDeleteResponse>, Status> {
        let header = self.change_auth(request, What::UserDelete).await?;
        Ok(Response::new(AuthUserDeleteResponse { header }))
    }

    async fn user_grant_role(
        &self,
        request: Request<AuthUserGrantRoleRequest>,
    ) -> Result<Response<AuthUserGrantRoleResponse>, Status> {
        let header = self.change_auth(request, What::UserGrant).await?;
        Ok(Response::new(AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<AuthUserRevokeRoleRequest>,
    ) -> Result<Response<AuthUserRevokeRoleResponse>, Status> {
        let header = self.change_auth(request, What::UserRevoke).await?;
        Ok(Response::new(AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(
        &self,
        request: Request<AuthRoleAddRequest>,
    ) -> Result<Response<AuthRoleAddResponse>, Status> {
        let header = self.change_auth(request, What::RoleAdd).await?;
        Ok(Response::new(AuthRoleAddResponse { header }))
    }

    async fn role_delete(
        &self,
        request: Request<AuthRoleDeleteRequest>,
    ) -> Result<Response<AuthRoleDeleteResponse>, Status> {
        let header = self.change_auth(request, What::RoleDelete).await?;
        Ok(Response::new(AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<AuthRoleGrantPermissionResponse>, Status> {
        let header = self.change_auth(request, What::RoleGrant).await?;
        Ok(Response::new(AuthRoleGrantPermissionResponse { header }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<AuthRoleRevokePermissionResponse>, Status> {
        let header = self.change_auth(request, What::RoleRevoke).await?;
        Ok(Response::new(AuthRoleRevokePermissionResponse { header }))
    }

    async fn auth_status(
        &self,
        request: Request<AuthStatusRequest>,
    ) -> Result<Response<AuthStatusResponse>, Status> {
        let (header, (enabled, auth_revision)) = self
            .look(request, |auth, by, _| {
                auth.admin(by)?;
                Ok((auth.enabled, auth.revision()))
            })
            .await?;
        Ok(Response::new(AuthStatusResponse { header, enabled, auth_revision }))
    }

    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        let AuthenticateRequest { name, password } = request.into_inner();
        self.engine.turn().await?;
        for _ in 0..TRIES_MAX {
            match self.authenticate_once(&name, &password).await {
                Err(Refusal::Auth(AuthError::OldRevision)) => {}
                token => {
                    let (header, token) = (Some(self.engine.header_now()), token?);
                    return Ok(Response::new(AuthenticateResponse { header, token }));
                }
            }
        }
        Err(Refusal::Auth(AuthError::OldRevision).into())
    }

    async fn user_add(
        &self,
        request: Request<AuthUserAddRequest>,
    ) -> Result<Response<AuthUserAddResponse>, Status> {
        let by = self.by(&request).await?;
        let mut user = request.into_inner();
        let password = std::mem::take(&mut user.password);
        user.hashed_password = match user.options {
            Some(options) if options.no_password => String::new(),
            _ => self.hashed(password).await?,
        };
        let header = self.change_by(&by, What::UserAdd(user)).await?;
        Ok(Response::new(AuthUserAddResponse { header }))
    }

    async fn user_change_password(
        &self,
        request: Request<AuthUserChangePasswordRequest>,
    ) -> Result<Response<AuthUserChangePasswordResponse>, Status> {
        let by = self.by(&request).await?;
        let mut user = request.into_inner();
        user.hashed_password = self.hashed(std::mem::take(&mut user.password)).await?;
        let header = self.change_by(&by, What::Password(user)).await?;
        Ok(Response::new(AuthUserChangePasswordResponse { header }))
    }

    async fn user_get(
        &self,
        request: Request<AuthUserGetRequest>,
    ) -> Result<Response<AuthUserGetResponse>, Status> {
        let (header, roles) = self
            .look(request, |auth, by, asked| {
                let itself = matches!(by, By::Client(c) if c.user == asked.name);
                auth.admin(by).or_else(|refused| if itself { Ok(()) } else { Err(refused) })?;
                let user = auth.users.get(&asked.name).ok_or(AuthError::UserNotFound)?;
                Ok(user.roles.clone())
            })
            .await?;
        Ok(Response::new(AuthUserGetResponse { header, roles }))
    }

    async fn user_list(
        &self,
        request: Request<AuthUserListRequest>,
    ) -> Result<Response<AuthUserListResponse>, Status> {
        let (header, users) = self
            .look(request, |auth, by, _| {
                auth.admin(by)?;
                Ok(auth.users.keys().cloned().collect())
            })
            .await?;
        Ok(Response::new(AuthUserListResponse { header, users }))
    }

    async fn role_get(
        &self,
        request: Request<AuthRoleGetRequest>,
    ) -> Result<Response<AuthRoleGetResponse>, Status> {
        let (header, perm) = self
            .look(request, |auth, by, asked| {
                let has = matches!(by, By::Client(c) if auth.has_role(&c.user, &asked.role));
                auth.admin(by).or_else(|refused| if has { Ok(()) } else { Err(refused) })?;
                let role = auth.roles.get(&asked.role).ok_or(AuthError::RoleNotFound)?;
                Ok(if asked.role == ROOT { everything() } else { role.permissions.clone() })
            })
            .await?;
        Ok(Response::new(AuthRoleGetResponse { header, perm }))
    }

    async fn role_list(
        &self,
        request: Request<AuthRoleListRequest>,
    ) -> Result<Response<AuthRoleListResponse>, Status> {
        let (header, roles) = self
            .look(request, |auth, by, _| {
                auth.admin(by)?;
                Ok(auth.roles.keys().cloned().collect())
            })
            .await?;
        Ok(Response::new(AuthRoleListResponse { header, roles }))
    }
}

/// What the root role may do, whatever it was granted.
fn everything() -> Vec<Permission> {
    let range_end = bytes::Bytes::from_static(&[0]);
    vec![Permission { perm_type: Type::Readwrite.into(), key: bytes::Bytes::new(), range_end }]
}
