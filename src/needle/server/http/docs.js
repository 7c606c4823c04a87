"use strict";

const element = (name, text) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return made;
};

const field = (form, parameter) => {
  const label = element("label", parameter.name + (parameter.required ? " *" : ""));
  const input = element("input");
  input.name = parameter.name;
  input.required = Boolean(parameter.required);
  label.append(input);
  form.append(label);
};

const send = async (path, method, operation, form) => {
  let address = path;
  const query = new URLSearchParams();
  const headers = { accept: "application/json" };
  for (const parameter of operation.parameters) {
    const value = form.elements[parameter.name].value;
    if (parameter.in === "path") address = address.replace(`{${parameter.name}}`, encodeURIComponent(value));
    else if (value === "") continue;
    else if (parameter.in === "header") headers[parameter.name] = value;
    else query.set(parameter.name, value);
  }
  if (query.size) address += `?${query}`;
  const request = { method: method.toUpperCase(), headers };
  const key = document.getElementById("key").value.trim();
  if (key) request.headers.authorization = `Bearer ${key}`;
  if (operation.requestBody) {
    request.headers["content-type"] = "application/json";
    request.body = form.elements["request body"].value;
  }
  const answer = await fetch(address, request);
  const text = await answer.text();
  let shown = text;
  try {
    shown = JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    // lines of JSON are shown as they are
  }
  return `${request.method} ${address}\n${answer.status}\n\n${shown}`;
};

const operationOf = (path, method, operation) => {
  const details = element("details");
  const summary = element("summary");
  const role = element("span", operation["x-role"]);
  role.className = "role";
  summary.append(element("b", method.toUpperCase()), element("code", path), element("span", operation.summary), role);
  const form = element("form");
  operation.parameters.forEach((parameter) => field(form, parameter));
  if (operation.requestBody) {
    const area = element("textarea");
    area.name = "request body";
    area.value = JSON.stringify(operation.requestBody.content["application/json"].example, null, 2);
    form.append(area);
  }
  const answer = element("pre");
  answer.hidden = true;
  form.append(element("button", "Send"), answer);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    answer.hidden = false;
    answer.textContent = "...";
    try {
      answer.textContent = await send(path, method, operation, form);
    } catch (error) {
      answer.textContent = String(error);
    }
  });
  details.append(summary, form);
  return details;
};

const show = async () => {
  const api = await (await fetch("/openapi.json")).json();
  document.getElementById("about").textContent = api.info.description;
  const groups = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const tag = operation.tags[0];
      if (!groups.has(tag)) groups.set(tag, [element("h2", tag)]);
      groups.get(tag).push(operationOf(path, method, operation));
    }
  }
  for (const parts of groups.values()) document.getElementById("operations").append(...parts);
};

show();
