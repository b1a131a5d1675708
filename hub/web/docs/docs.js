// Draws the hub's own OpenAPI document. A file of its own, since the page's policy allows no inline script.
"use strict";

window.ui = SwaggerUIBundle({
  url: "/openapi/openapi.json",
  dom_id: "#docs",
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
  deepLinking: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
  persistAuthorization: false, // a key stays in this page's memory
  validatorUrl: null, // or the page asks swagger.io to judge the document
  queryConfigEnabled: false, // or ?url= in a link makes this page show another hub's document
});
