// @polar-sh/sdk 1.x for Node plays every call that the sidecar serves.
import { createPolar } from "polar-1/2026-10";
import { Played } from "./playing.mjs";

const played = new Played((answer) => answer);
const { known } = played;
const open = (accessToken) => createPolar({ accessToken, baseUrl: known.address });
const polar = open(known.app);
const operator = open(known.operator);
const portal = polar.customerPortal;

await played.call("customers.list", () => polar.customers.list({ limit: 100, sorting: ["created_at"] }));
await played.call("customers.get", () => polar.customers.get(known.customer_id));
await played.call("customers.get_external", () => polar.customers.getExternal(known.external_id));
await played.call("customers.get_state", () => polar.customers.getState(known.customer_id));
await played.call("customers.get_state_external", () => polar.customers.getStateExternal(known.external_id));
await played.call("subscriptions.list", () => polar.subscriptions.list({ limit: 100, active: true }));
await played.call("orders.list", () => polar.orders.list({ limit: 100, customer_id: known.customer_id }));
await played.call("benefits.list", () => polar.benefits.list({ limit: 100 }));
await played.call("benefits.get", () => polar.benefits.get(known.benefit_id));
await played.call("benefits.get_polars", () => polar.benefits.get(known.polar_benefit_id));
await played.call("benefits.grants", () => polar.benefits.grants(known.benefit_id, { is_granted: true }));
await played.call("benefit_grants.list", () =>
  polar.benefitGrants.list({ limit: 100, customer_id: known.customer_id }),
);

const keys = polar.licenseKeys;
await played.call("license_keys.list", () => keys.list({ benefit_id: [known.benefit_id], limit: 100 }));
const { key } = await played.call("license_keys.get", () => keys.get(known.key_id));
const about = { key, organization_id: known.organization_id };
await played.call("license_keys.update", () => keys.update(known.key_id, { usage: 0, limit_usage: 10 }));
await played.call("license_keys.validate", () => keys.validate({ ...about, increment_usage: 1 }));
const laptop = await played.call("license_keys.activate", () =>
  keys.activate({ ...about, label: "laptop", meta: { os: "linux" } }),
);
await played.refused("403", () => keys.activate({ ...about, label: "one too many" }));
await played.call("license_keys.get_activation", () => keys.getActivation(known.key_id, laptop.id));
await played.call("license_keys.deactivate", () => keys.deactivate({ ...about, activation_id: laptop.id }));

const session = await played.call("customer_sessions.create", () =>
  polar.customerSessions.create({ customer_id: known.customer_id, return_url: known.return_url }),
);
const mine = { accessToken: session.token };
await played.call("customer_portal.license_keys.validate", () => portal.licenseKeys.validate(about));
const phone = await played.call("customer_portal.license_keys.activate", () =>
  portal.licenseKeys.activate({ ...about, label: "phone" }),
);
await played.call("customer_portal.license_keys.deactivate", () =>
  portal.licenseKeys.deactivate({ ...about, activation_id: phone.id }),
);
await played.call("customer_portal.license_keys.list", () => portal.licenseKeys.list({}, mine));
await played.call("customer_portal.license_keys.get", () => portal.licenseKeys.get(known.key_id, mine));
await played.call("customer_portal.downloadables.list", () => portal.downloadables.list({}, mine));
await played.call("customer_portal.benefit_grants.list", () => portal.benefitGrants.list({ limit: 100 }, mine));
await played.call("customer_portal.customer_session.introspect", () => portal.customerSession.introspect(mine));
await played.call("customer_portal.customer_session.get_authenticated_user", () =>
  portal.customerSession.getAuthenticatedUser(mine),
);
await played.call("license_keys.rotate", () => keys.rotate(known.key_id));

await played.call("webhooks.list_webhook_deliveries", () =>
  operator.webhooks.listWebhookDeliveries({ event_type: ["order.paid"], succeeded: true, limit: 100 }),
);
await played.call("webhooks.redeliver_webhook_event", () => operator.webhooks.redeliverWebhookEvent(known.webhook_id));

const { nobody, organization_id } = known;
await played.refused("404 customer", () => polar.customers.get(nobody));
await played.refused("404 state", () => polar.customers.getStateExternal("nobody"));
await played.refused("404 benefit", () => polar.benefits.get(nobody));
await played.refused("404 key", () => portal.licenseKeys.validate({ key: "unknown", organization_id }));
await played.refused("404 event", () => operator.webhooks.redeliverWebhookEvent(nobody));
await played.refused("400", () =>
  portal.licenseKeys.validate({ key: known.small_key, organization_id, increment_usage: 1000 }),
);
await played.refused("401", () => portal.licenseKeys.list({}, { accessToken: "almoner_cst_wrong" }));
await played.refused("422", () => polar.customerSessions.create({ customer_id: nobody }));
await played.refused("429", () => portal.licenseKeys.validate({ key: known.busy_key, organization_id }));
played.end();
