// Draws the hub's own OpenAPI document. A file of its own, since the page's policy allows no inline script.
"use strict";

// Swagger-ui fills every field of a form with a made-up value ("string", 0, the first choice) and sends empty ones,
// so that a form only works once it is cleared. Here a field without an example starts empty, and is not sent.
function EmptyForms() {
  return {
    afterLoad() {
      const sample = this.fn.getSampleSchema;
      this.fn.getSampleSchema = (schema, type, ...rest) => {
        if (type !== false) return sample(schema, type, ...rest); // forms alone ask with `false`
        const plain = schema?.toJS ? schema.toJS() : schema;
        const known = plain.default !== undefined || plain.example !== undefined || plain.examples?.length;
        if (known) return sample(schema, type, ...rest);
        return plain.type === "array" ? "[]" : "";
      };
    },
    wrapComponents: {
      ParameterIncludeEmpty: (Original, system) => (props) =>
        system.React.createElement(Original, {
          ...props,
          isIncludedOptions: { ...props.isIncludedOptions, defaultValue: false },
        }),
    },
  };
}

window.ui = SwaggerUIBundle({
  url: "/openapi/openapi.json",
  dom_id: "#docs",
  presets: [SwaggerUIBundle.presets.apis],
  plugins: [EmptyForms],
  layout: "BaseLayout",
  deepLinking: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
  persistAuthorization: false, // a key stays in this page's memory
  validatorUrl: null, // or the page asks swagger.io to judge the document
  queryConfigEnabled: false, // or ?url= in a link makes this page show another hub's document
});
