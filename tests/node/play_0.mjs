// @polar-sh/sdk 0.49 for Node, the last that says it runs on Node 20, plays the same.
import { Polar } from "polar-0";
import { Played, snakeCased } from "./playing.mjs";

const played = new Played((answer) => snakeCased(answer?.result ?? answer)); // lists are wrapped
const { known } = played;
const open = (accessToken) => new Polar({ accessToken, serverURL: known.address });
const polar = open(known.app);
const operator = open(known.operator);
const portal = polar.customerPortal;

await played.call("customers.list", () => polar.customers.list({ limit: 100, sorting: ["created_at"] }));
await played.call("customers.get", () => polar.customers.get({ id: known.customer_id }));
await played.call("customers.get_external", () => polar.customers.getExternal({ externalId: known.external_id }));
await played.call("customers.get_state", () => polar.customers.getState({ id: known.customer_id }));
await played.call("customers.get_state_external", () =>
  polar.customers.getStateExternal({ externalId: known.external_id }),
);
await played.call("subscriptions.list", () => polar.subscriptions.list({ limit: 100, active: true }));
await played.call("orders.list", () => polar.orders.list({ limit: 100, customerId: known.customer_id }));
await played.call("benefits.list", () => polar.benefits.list({ limit: 100 }));
await played.call("benefits.get", () => polar.benefits.get({ id: known.benefit_id }));
await played.call("benefits.get_polars", () => polar.benefits.get({ id: known.polar_benefit_id }));
await played.call("benefits.grants", () => polar.benefits.grants({ id: known.benefit_id, isGranted: true }));
await played.call("benefit_grants.list", () =>
  polar.benefitGrants.list({ limit: 100, customerId: known.customer_id }),
);

const keys = polar.licenseKeys;
const keyId = known.key_id;
await played.call("license_keys.list", () => keys.list({ benefitId: [known.benefit_id], limit: 100 }));
const { key } = await played.call("license_keys.get", () => keys.get({ id: keyId }));
const about = { key, organizationId: known.organization_id };
await played.call("license_keys.update", () =>
  keys.update({ id: keyId, licenseKeyUpdate: { usage: 0, limitUsage: 10 } }),
);
await played.call("license_keys.validate", () => keys.validate({ ...about, incrementUsage: 1 }));
const laptop = await played.call("license_keys.activate", () =>
  keys.activate({ ...about, label: "laptop", meta: { os: "linux" } }),
);
await played.refused("403", () => keys.activate({ ...about, label: "one too many" }));
await played.call("license_keys.get_activation", () => keys.getActivation({ id: keyId, activationId: laptop.id }));
await played.call("license_keys.deactivate", () => keys.deactivate({ ...about, activationId: laptop.id }));

const session = await played.call("customer_sessions.create", () =>
  polar.customerSessions.create({ customerId: known.customer_id, returnUrl: known.return_url }),
);
const mine = { customerSession: session.token };
await played.call("customer_portal.license_keys.validate", () => portal.licenseKeys.validate(about));
const phone = await played.call("customer_portal.license_keys.activate", () =>
  portal.licenseKeys.activate({ ...about, label: "phone" }),
);
await played.call("customer_portal.license_keys.deactivate", () =>
  portal.licenseKeys.deactivate({ ...about, activationId: phone.id }),
);
await played.call("customer_portal.license_keys.list", () => portal.licenseKeys.list(mine, {}));
await played.call("customer_portal.license_keys.get", () => portal.licenseKeys.get(mine, { id: keyId }));
await played.call("customer_portal.downloadables.list", () => portal.downloadables.list(mine, {}));
await played.call("customer_portal.benefit_grants.list", () => portal.benefitGrants.list(mine, { limit: 100 }));
await played.call("customer_portal.customer_session.introspect", () => portal.customerSession.introspect(mine));
await played.call("customer_portal.customer_session.get_authenticated_user", () =>
  portal.customerSession.getAuthenticatedUser(mine),
);

await played.call("webhooks.list_webhook_deliveries", () =>
  operator.webhooks.listWebhookDeliveries({ eventType: ["order.paid"], succeeded: true, limit: 100 }),
);
await played.call("webhooks.redeliver_webhook_event", () =>
  operator.webhooks.redeliverWebhookEvent({ id: known.webhook_id }),
);

const { nobody, organization_id: organizationId } = known;
await played.refused("404 customer", () => polar.customers.get({ id: nobody }));
await played.refused("404 state", () => polar.customers.getStateExternal({ externalId: "nobody" }));
await played.refused("404 benefit", () => polar.benefits.get({ id: nobody }));
await played.refused("404 key", () => portal.licenseKeys.validate({ key: "unknown", organizationId }));
await played.refused("404 event", () => operator.webhooks.redeliverWebhookEvent({ id: nobody }));
await played.refused("400", () =>
  portal.licenseKeys.validate({ key: known.small_key, organizationId, incrementUsage: 1000 }),
);
await played.refused("401", () => portal.licenseKeys.list({ customerSession: "almoner_cst_wrong" }, {}));
await played.refused("422", () => polar.customerSessions.create({ customerId: nobody }));
await played.refused("429", () => portal.licenseKeys.validate({ key: known.busy_key, organizationId }));
played.end();
